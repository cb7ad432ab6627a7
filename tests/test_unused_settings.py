"""Every setting has a recipe that ships with it, or a reason."""

import dataclasses

import unused_settings
from unused_settings import choices, settings, unused

from fastcondense.recipe import recipe

HOW = "how a run is done, not what it makes"
COMMAND = "of one command or of a whole run, not of a method"
KEPT = {
    "Recipe.seed": "runs with other seeds",
    "Dataset.workers": HOW,
    "Dataset.loader": HOW,
    "Dataset.on_error": HOW,
    "Squeeze.normalization": "checkpoints of others",
    "Squeeze.classes_file": "checkpoints of others",
    "Squeeze.shared": HOW,
    "Squeeze.sync_batch_norm": HOW,
    "Recover.snapshots": HOW,
    "Gradients.layer": "networks of one's own",
    "Recover.statistics_files": "statistics of others, which take a day on ImageNet",
    "Recover.gradient_share": "measured in docs/methods.md",
    "Recover.reproducible": HOW,
    "Recover.tv_weight": "SRe2L's code has it, at 0",
    "Recover.l2_weight": "SRe2L's code has it, at 0",
    "Recover.flatness_weight": "EDC's paper has it, its code not: the recipes' headers name the value",
    "Recover.loss": "a loss of one's own",
    "Labels.stored": "labels of others, and stored ones",
    "Train.sync_batch_norm": HOW,
    "Train.prefix": COMMAND,
    "Evaluate.sizes": COMMAND,
    "Evaluate.compare": COMMAND,
    "Ranking.labels": COMMAND,
    "Ranking.real_accuracy": COMMAND,
    "Ranking.learning_rates": COMMAND,
}
KEPT_CHOICES = {
    "Optimization.precision tf32": "GPUs are made for it",
    "Optimization.precision bf16": "what auto becomes on most devices",
    "Recover.precision tf32": "GPUs are made for it",
    "Recover.precision bf16": "what auto becomes on most devices",
    "Labels.precision tf32": "GPUs are made for it",
    "Labels.precision bf16": "what auto becomes on most devices",
    "Evaluate.baselines herding_soft": "measured in docs/nested.md",
    "Evaluate.baselines herding_hard": "measured in docs/nested.md, with soft labels",
    "Evaluate.baselines medoid_soft": "one of the subsets that best_soft is chosen from",
    "Evaluate.baselines bps_soft": "one of the subsets that best_soft is chosen from",
    "Evaluate.baselines full_soft": "what all of the real images give with the teachers' labels",
}


def test_a_setting_has_a_recipe_or_a_reason():
    unset, untaken = unused()
    assert set(unset) == set(KEPT)
    assert set(untaken) == set(KEPT_CHOICES)


def test_what_nobody_sets_is_found(monkeypatch):
    """Recipes that leave everything as it is use nothing; what one changes is used wherever it is inherited."""
    plain = recipe.Recipe()
    monkeypatch.setattr(unused_settings, "shipped", lambda: [plain])
    names = [name for name, *_ in settings(recipe.Recipe)]
    assert unused() == (list(dict.fromkeys(names)), []) and names.count("Optimization.momentum") == 4
    probe = dataclasses.replace(plain.squeeze.probe, momentum=0.5, optimizer="adam")
    changed = dataclasses.replace(plain, squeeze=dataclasses.replace(plain.squeeze, probe=probe))
    monkeypatch.setattr(unused_settings, "shipped", lambda: [plain, changed])
    unset, untaken = unused()
    assert set(names) - set(unset) == {"Optimization.momentum", "Optimization.optimizer"}
    assert untaken == ["Optimization.optimizer muon"]  # adamw is a default, adam is taken here, sgd the probe's default


def test_every_table_of_a_recipe_is_loaded():
    found = {
        (one.method, one.dataset.name, one.ipc, one.recover.gradients.formation) for one in unused_settings.shipped()
    }
    assert ("idc", "folder", 20, "bound") in found  # a table of a shared file, by ipc
    students = {one.train.student for one in unused_settings.shipped() if one.name.startswith("cvdd/imagenette")}
    assert len(students) > 1  # tables by student


def test_choices_are_found_in_lists_too():
    hints = {path: hint for _, path, hint in settings(recipe.Recipe)}
    assert choices(hints["recover", "statistics"]) == ("bn", "conv", "patch")
    assert choices(hints["recover", "iterations"]) == ()
