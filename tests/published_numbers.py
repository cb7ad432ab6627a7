"""Numbers of the published scripts by recipe, written down from the specification, for test_recipe_numbers.py.

Sources: sre2l_cda_scdd_rded_mdc 6.1, 6.2 and 7; gvbsm_edc 1.1, 3, 4 and 5; fadrm_cvdd_cim_lpld 2 to 7; HALD's code.
"""

WINDOWS = "recover.crop_scale recover.padding recover.flip recover.roll"
SMALL, LARGE = (0.08, 1.0), (0.5, 1.0)
WHOLE = (1.0, 1.0)


def rows(columns: str, table: dict[str, tuple]) -> list:
    """A recipe, and what its settings are, for every row."""
    return [(name, dict(zip(columns.split(), row, strict=True))) for name, row in table.items()]


RECOVER = rows(
    f"recover.iterations recover.lr recover.match_weight recover.batch_size {WINDOWS}",
    {
        "sre2l/imagenet1k": (4000, 0.25, 0.01, 100, SMALL, 0, 0.5, (0, 32)),
        "sre2l/tiny-imagenet": (4000, 0.1, 1.0, 100, SMALL, 0, 0.5, (-4, 4)),
        "sre2l/cifar100": (1000, 0.25, 0.01, 100, WHOLE, 0, 0.0, (0, 4)),
        "cda/imagenet1k": (4000, 0.25, 0.01, 100, SMALL, 0, 0.5, (0, 32)),
        "cda/tiny-imagenet": (4000, 0.4, 0.05, 100, SMALL, 0, 0.5, (0, 4)),
        "cda/imagenet21k": (2000, 0.05, 0.25, 100, SMALL, 0, 0.5, (0, 32)),
        "scdd/imagenet1k": (1000, 0.1, 0.01, 50, SMALL, 0, 0.5, (0, 32)),
        "scdd/cifar100": (1000, 0.4, 0.005, 100, WHOLE, 0, 0.0, (0, 4)),
        "gvbsm/imagenet1k": (4000, 0.1, 0.01, 80, SMALL, 0, 0.5, (0, 32)),
        "gvbsm/tiny-imagenet": (4000, 0.05, 0.01, 100, SMALL, 8, 0.5, (0, 32)),
        "gvbsm/cifar100": (4000, 0.05, 0.01, 100, SMALL, 4, 0.5, (0, 32)),
        "gvbsm/cifar10": (4000, 0.05, 0.01, 100, SMALL, 4, 0.5, (0, 32)),
        "edc/imagenet1k": (1000, 0.05, 0.1, 80, LARGE, 0, 0.5, (0, 0)),
        "edc/imagenet10": (50, 0.05, 0.01, 100, LARGE, 0, 0.5, (0, 0)),
        "edc/tiny-imagenet": (2000, 0.05, 0.01, 100, LARGE, 0, 0.5, (0, 0)),
        "edc/cifar100": (2000, 0.05, 0.01, 100, LARGE, 0, 0.5, (0, 0)),
        "edc/cifar10": (75, 0.05, 0.01, 500, SMALL, 0, 0.5, (0, 0)),
        "fadrm/imagenet1k": (2000, 0.25, 0.01, 100, SMALL, 0, 0.5, (0, 32)),
        "fadrm/imagenette": (2000, 0.05, 0.01, 100, SMALL, 0, 0.5, (0, 32)),
        "fadrm/tiny-imagenet": (1000, 0.01, 0.01, 100, SMALL, 0, 0.5, (0, 4)),
        "fadrm/cifar100": (2000, 0.25, 0.01, 100, SMALL, 0, 0.5, (0, 4)),
        "fadrm-plus/imagenet1k": (2000, 0.25, 0.01, 100, SMALL, 0, 0.5, (0, 32)),
        "fadrm-plus/imagenette": (2000, 0.25, 0.01, 100, SMALL, 0, 0.5, (0, 32)),
        "fadrm-plus/tiny-imagenet": (2000, 0.25, 0.01, 100, SMALL, 0, 0.5, (0, 4)),
        "fadrm-plus/cifar100": (2000, 0.25, 0.01, 100, SMALL, 0, 0.5, (0, 4)),
        "cvdd/imagenet1k": (4000, 0.25, 0.01, 100, SMALL, 0, 0.5, (0, 32)),
        "cvdd/cifar10": (4000, 0.25, 0.01, 100, SMALL, 0, 0.5, (0, 4)),
        "sre2l-plus-plus/tiny-imagenet": (4000, 0.25, 0.01, 100, SMALL, 0, 0.5, (0, 4)),
        "lpld/imagenet1k": (4000, 0.25, 0.01, 200, SMALL, 0, 0.5, (0, 32)),
        "lpld/tiny-imagenet": (4000, 0.1, 0.05, 100, SMALL, 0, 0.5, (-4, 4)),
    },
)

STATISTICS = rows(
    "recover.statistics_ema recover.ema_start recover.drop_rate recover.densification_weight recover.patch_size "
    "recover.targets recover.target_weights recover.swapped_patches recover.class_variance recover.initial.kind",
    {
        "gvbsm/imagenet1k": (0.4, "zero", 0.0, 1.0, 16, ("global",), (1.0,), False, "within-image", "noise"),
        "gvbsm/tiny-imagenet": (0.8, "zero", 0.4, 1.0, 4, ("global",), (1.0,), False, "within-image", "noise"),
        "gvbsm/cifar100": (0.8, "zero", 0.4, 1.0, 4, ("global",), (1.0,), False, "within-image", "noise"),
        "gvbsm/cifar10": (0.8, "zero", 0.4, 1.0, 4, ("global",), (1.0,), False, "within-image", "noise"),
        "gvbsm/cifar10-corrected": (0.8, "first", 0.4, 1.0, 4, ("global",), (1.0,), False, "within-image", "noise"),
        "edc/imagenet1k": (
            *(0.8, "zero", 0.0, 0.0, 16, ("global", "category"), (0.5, 0.5), True, "within-image", "mosaic"),
        ),
        "edc/imagenet10": (
            *(0.0, "zero", 0.0, 0.0, 16, ("global", "category"), (0.5, 0.5), True, "within-image", "mosaic"),
        ),
        "edc/tiny-imagenet": (
            *(0.8, "zero", 0.0, 0.0, 4, ("global", "category"), (0.5, 0.5), True, "within-image", "real"),
        ),
        "edc/cifar100": (0.8, "zero", 0.0, 0.0, 4, ("global", "category"), (0.5, 0.5), True, "within-image", "real"),
        "edc/cifar10": (0.8, "zero", 0.0, 0.0, 4, ("global", "category"), (0.5, 0.5), True, "within-image", "real"),
        "edc/cifar10-corrected": (
            *(0.8, "first", 0.0, 0.0, 4, ("global", "category"), (0.5, 0.5), False, "full", "real"),
        ),
        "lpld/imagenet1k": (0.0, "first", 0.0, 0.0, 16, ("category",), (1.0,), False, "within-image", "noise"),
        "lpld/imagenet1k-corrected": (0.0, "first", 0.0, 0.0, 16, ("category",), (1.0,), False, "full", "noise"),
    },
)

MOSAICS = rows(
    "recover.initial.kind recover.initial.layout recover.initial.candidates recover.initial.crops "
    "recover.initial.factor recover.initial.crop_scale recover.initial.crop_ratio recover.iterations",
    {
        "rded/imagenet1k": ("mosaic", "rank-major", 300, 5, 2, SMALL, WHOLE, 0),
        "rded/imagenet10": ("mosaic", "rank-major", 300, 5, 2, SMALL, WHOLE, 0),
        "rded/tiny-imagenet": ("mosaic", "rank-major", 300, 5, 1, SMALL, WHOLE, 0),
        "rded/cifar100": ("mosaic", "rank-major", 300, 5, 1, SMALL, WHOLE, 0),
        "rded/cifar10": ("mosaic", "rank-major", 300, 5, 1, SMALL, WHOLE, 0),
        "edc/imagenet1k": ("mosaic", "contiguous", 0, 4, 2, SMALL, (3 / 4, 4 / 3), 1000),
        "cim/imagenet1k": ("mosaic", "rank-major", 300, 0, 2, SMALL, WHOLE, 200),
        "cim/imagenet1k-ipc100": ("mosaic", "rank-major", 500, 0, 2, SMALL, WHOLE, 200),
        "cim/imagenet1k-ipc200": ("mosaic", "rank-major", 1000, 0, 2, SMALL, WHOLE, 200),
    },
)

TRAIN = rows(
    "train.epochs train.batch_size train.optimizer train.lr train.weight_decay train.schedule train.schedule_stretch "
    "train.loss labels.mix labels.crop_scale",
    {
        "sre2l/imagenet1k": (300, 1024, "adamw", 1e-3, 0.01, "cosine", 1, "kl", "cutmix", SMALL),
        "sre2l/tiny-imagenet": (100, 256, "sgd", 0.2, 1e-4, "cosine", 1, "kl_t2", "none", SMALL),
        "sre2l/cifar100": (400, 128, "adamw", 1e-3, 0.01, "cosine", 1, "kl", "mixup", SMALL),
        "cda/imagenet1k": (300, 128, "adamw", 1e-3, 0.01, "cosine", 1, "kl", "cutmix", SMALL),
        "cda/tiny-imagenet": (100, 256, "sgd", 0.2, 1e-4, "cosine", 1, "kl_t2", "none", SMALL),
        "cda/imagenet21k": (300, 1024, "adamw", 1e-3, 0.01, "cosine", 1, "kl", "cutmix", SMALL),
        "scdd/imagenet1k": (300, 64, "adamw", 1e-3, 0.01, "cosine", 1, "kl", "cutmix", SMALL),
        "scdd/cifar100": (200, 64, "adamw", 1e-3, 0.01, "cosine", 3, "kl", "mixup", SMALL),
        "gvbsm/imagenet1k": (300, 1024, "adamw", 1e-3, 0.01, "cosine", 1, "mse_ce", "cutmix", SMALL),
        "gvbsm/tiny-imagenet": (100, 100, "sgd", 0.1, 5e-4, "cosine", 1, "mse_ce", "cutmix", SMALL),
        "gvbsm/cifar100": (1000, 64, "sgd", 0.1, 5e-4, "cosine", 1, "mse_ce", "cutmix", SMALL),
        "gvbsm/cifar10": (1000, 100, "adamw", 1e-3, 0.0, "cosine", 1, "mse_ce", "cutmix", SMALL),
        "edc/imagenet1k": (300, 100, "adamw", 1e-3, 0.01, "linear", 2, "mse_ce", "cutmix", LARGE),
        "edc/imagenet1k-corrected": (300, 100, "adamw", 1e-3, 0.01, "cosine", 2, "mse_ce", "cutmix", LARGE),
        "edc/imagenet10": (1000, 50, "adamw", 1e-3, 0.01, "cosine_drop", 2, "mse_ce", "cutmix", LARGE),
        "edc/tiny-imagenet-ipc1": (1000, 100, "sgd", 0.1, 5e-4, "cosine", 2, "mse_ce", "cutmix", LARGE),
        "edc/tiny-imagenet-ipc50": (300, 100, "sgd", 0.1, 5e-4, "cosine", 2, "mse_ce", "cutmix", LARGE),
        "edc/cifar100": (1000, 50, "sgd", 0.1, 5e-4, "cosine_drop", 2, "mse_ce", "cutmix", LARGE),
        "edc/cifar10-ipc1": (1000, 10, "adamw", 1e-3, 0.01, "multistep", 2, "mse_ce", "cutmix", SMALL),
        "edc/cifar10-ipc10": (1000, 25, "adamw", 1e-3, 0.01, "multistep", 2, "mse_ce", "cutmix", SMALL),
        "rded/cifar10-ipc1": (300, 10, "adamw", 1e-3, 0.01, "cosine", 2, "kl", "cutmix", WHOLE),
        "rded/cifar10-ipc10": (300, 50, "adamw", 1e-3, 0.01, "cosine", 2, "kl", "cutmix", WHOLE),
        "rded/cifar10-ipc50": (300, 100, "adamw", 1e-3, 0.01, "cosine", 2, "kl", "cutmix", WHOLE),
        "rded/tiny-imagenet-ipc1": (300, 100, "adamw", 1e-3, 0.01, "cosine", 2, "kl", "cutmix", WHOLE),
        "rded/imagenet1k-ipc1": (300, 20, "adamw", 1e-3, 0.01, "cosine", 2, "kl", "cutmix", LARGE),
        "rded/imagenet1k-ipc10": (300, 100, "adamw", 1e-3, 0.01, "cosine", 2, "kl", "cutmix", LARGE),
        "rded/imagenet1k-ipc50": (300, 200, "adamw", 1e-3, 0.01, "cosine", 2, "kl", "cutmix", LARGE),
        "fadrm/cifar100-ipc1": (1000, 16, "adamw", 5e-4, 0.01, "cosine", 2, "kl", "cutmix", SMALL),
        "fadrm/cifar100-ipc10": (1000, 16, "adamw", 1e-3, 0.01, "cosine", 2, "kl", "cutmix", SMALL),
        "fadrm-plus/cifar100-ipc50": (1000, 16, "adamw", 1e-3, 0.01, "cosine", 1, "kl", "cutmix", SMALL),
        "fadrm-plus/tiny-imagenet-ipc10": (300, 16, "adamw", 1e-3, 0.01, "cosine", 2, "kl", "cutmix", SMALL),
        "fadrm-plus/tiny-imagenet-ipc50": (300, 16, "adamw", 1e-3, 0.01, "cosine", 1, "kl", "cutmix", SMALL),
        "fadrm-plus/imagenette-ipc1": (300, 10, "adamw", 5e-4, 0.01, "cosine", 2, "kl", "cutmix", SMALL),
        "fadrm-plus/imagenette-ipc10": (300, 10, "adamw", 5e-4, 0.01, "cosine", 1, "kl", "cutmix", SMALL),
        "fadrm-plus/imagenet1k-ipc10": (300, 16, "adamw", 1e-3, 0.01, "cosine", 2, "kl", "cutmix", SMALL),
        "fadrm-plus/imagenet1k-ipc50": (300, 16, "adamw", 1e-3, 0.01, "cosine", 1, "kl", "cutmix", SMALL),
        "cvdd/cifar10-ipc1": (300, 10, "adamw", 1e-3, 0.01, "cosine", 1, "kl", "cutmix", SMALL),
        "cvdd/cifar10-ipc10": (300, 16, "adamw", 1e-3, 0.01, "cosine", 1, "kl", "cutmix", SMALL),
        "cvdd/cifar100-ipc10": (300, 16, "adamw", 1e-3, 0.01, "cosine", 2, "kl", "cutmix", SMALL),
        "cvdd/cifar100-ipc50": (300, 16, "adamw", 1e-3, 0.01, "cosine", 1, "kl", "cutmix", SMALL),
        "cvdd/tiny-imagenet-ipc10": (300, 16, "adamw", 1e-3, 0.01, "cosine", 1, "kl", "cutmix", SMALL),
        "cvdd/tiny-imagenet-ipc50": (300, 16, "adamw", 1e-3, 0.01, "cosine", 2, "kl", "cutmix", SMALL),
        "cvdd/imagenette-ipc50": (300, 10, "adamw", 5e-4, 0.01, "cosine", 2, "kl", "cutmix", SMALL),
        "cvdd/imagenet1k-ipc10": (300, 16, "adamw", 1e-3, 0.01, "cosine", 2, "kl", "cutmix", SMALL),
        "cvdd/imagenet1k-ipc50": (300, 16, "adamw", 1e-3, 0.01, "cosine", 1, "kl", "cutmix", SMALL),
        "cim/cifar10-ipc1": (1000, 10, "adamw", 1e-3, 1e-4, "multistep", 1, "mse_ce", "none", WHOLE),
        "cim/cifar10-ipc50": (1000, 50, "adamw", 1e-3, 1e-4, "multistep", 1, "mse_ce", "none", WHOLE),
        "cim/cifar100-ipc1": (1000, 50, "adamw", 1e-3, 1e-4, "multistep", 1, "mse_ce", "none", WHOLE),
        "cim/tiny-imagenet-ipc10": (1000, 100, "adamw", 1e-3, 1e-4, "multistep", 1, "mse_ce", "none", WHOLE),
        "cim/imagenet1k-ipc10": (300, 100, "adamw", 1e-3, 1e-4, "multistep", 1, "mse_ce", "none", WHOLE),
        "cim/imagenet1k-ipc50": (300, 200, "adamw", 1e-3, 1e-4, "multistep", 1, "mse_ce", "none", WHOLE),
        "lpld/imagenet1k": (300, 128, "adamw", 1e-3, 0.01, "cosine", 1, "kl", "cutmix", SMALL),
        **{
            f"hald/imagenet1k-ipc{ipc}": (300, 16, "adamw", 1e-3, 0.01, "cosine", stretch, "kl", "cutmix", SMALL)
            for ipc, stretch in ((1, 2), (10, 2), (50, 1))
        },
        "lpld/tiny-imagenet": (100, 64, "sgd", 0.2, 1e-4, "cosine", 1, "kl_t2", "none", SMALL),
    },
)

SQUEEZE = rows(
    "squeeze.epochs squeeze.batch_size squeeze.optimizer squeeze.lr squeeze.weight_decay squeeze.schedule "
    "squeeze.padding",
    {
        "sre2l/tiny-imagenet": (50, 256, "sgd", 0.2, 1e-4, "cosine", 0),
        "sre2l/cifar100": (200, 128, "sgd", 0.1, 5e-4, "cosine", 4),
        "gvbsm/cifar10": (5, 64, "sgd", 0.05, 0.0, "constant", 4),
        "gvbsm/cifar100": (50, 64, "sgd", 0.05, 0.0, "constant", 4),
        "gvbsm/tiny-imagenet": (50, 128, "sgd", 0.1, 0.0, "cosine", 8),
        "edc/imagenet10": (20, 128, "sgd", 0.01, 0.0, "cosine", 0),
        "cvdd/cifar10": (200, 512, "adam", 1e-3, 1e-4, "cosine", 4),
        "cvdd/tiny-imagenet": (50, 128, "sgd", 0.01, 1e-4, "cosine", 4),
        "cvdd/imagenette": (300, 64, "sgd", 0.01, 1e-4, "cosine", 0),
    },
)

RATES = {  # learning rate and stretch at 1, 10 and 50 images a class
    ("cvdd/cifar10", "zoo/resnet101"): [(5e-4, 1)] * 3,
    ("cvdd/cifar100", "zoo/resnet50"): [(1e-3, 1), (1e-3, 2), (1e-3, 1)],
    ("sre2l-plus-plus/cifar100", "zoo/resnet101"): [(5e-4, 1)] * 3,
    ("cvdd/tiny-imagenet", "zoo/resnet50"): [(1e-3, 1)] * 3,
    ("cvdd/tiny-imagenet", "zoo/resnet101"): [(5e-4, 2)] * 3,
    ("cvdd/imagenette", "torchvision/resnet50"): [(5e-4, 2), (1e-3, 1), (5e-4, 1)],
    ("sre2l-plus-plus/imagenette", "torchvision/resnet101"): [(5e-4, 2), (5e-4, 2), (1e-3, 2)],
    ("cvdd/imagenet1k", "torchvision/resnet50"): [(1e-3, 2), (1e-3, 2), (1e-3, 1)],
    ("cvdd/imagenet1k", "torchvision/resnet101"): [(1e-3, 2), (1e-3, 2), (5e-4, 2)],
    ("fadrm/cifar100", "zoo/resnet18"): [(5e-4, 2), (1e-3, 2), (1e-3, 1)],
    ("fadrm/cifar100", "zoo/resnet50"): [(1e-3, 1), (1e-3, 2), (1e-3, 1)],
    ("fadrm-plus/cifar100", "zoo/resnet101"): [(5e-4, 1)] * 3,
    ("fadrm/tiny-imagenet", "zoo/resnet50"): [(5e-4, 2), (5e-4, 2), (5e-4, 1)],
    ("fadrm-plus/tiny-imagenet", "zoo/resnet101"): [(5e-4, 2), (5e-4, 2), (5e-4, 1)],
    ("fadrm/imagenette", "torchvision/resnet50"): [(5e-4, 2), (5e-4, 1), (5e-4, 1)],
    ("fadrm-plus/imagenette", "torchvision/resnet101"): [(5e-4, 2), (5e-4, 2), (1e-3, 2)],
    ("fadrm/imagenet1k", "torchvision/resnet50"): [(5e-4, 2), (1e-3, 2), (1e-3, 1)],
    ("fadrm-plus/imagenet1k", "torchvision/resnet101"): [(3.5e-3, 2), (1e-3, 2), (5e-4, 1)],
    ("hald/imagenet1k", "torchvision/resnet50"): [(5e-4, 2), (1e-3, 2), (1e-3, 1)],
    ("hald/imagenet1k", "torchvision/resnet101"): [(3.5e-3, 2), (1e-3, 2), (5e-4, 1)],
    ("rded/imagenet1k", "torchvision/resnet101"): [(1e-3, 2)] * 3,
    ("rded/imagenet1k", "torchvision/efficientnet_b0"): [(2e-3, 2)] * 3,
    ("rded/imagenette", "torchvision/mobilenet_v2"): [(2.5e-3, 2)] * 3,
    ("rded/imagenet1k", "torchvision/swin_v2_t"): [(1e-4, 2)] * 3,
    ("rded/imagenet10", "torchvision/vgg11"): [(5e-4, 2)] * 3,
}
