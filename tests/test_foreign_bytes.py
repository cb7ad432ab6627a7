"""Readers of foreign bytes, on files that are damaged at random and on generated ones: one line that names the file.

Nothing else may come of them: no other exception, no crash, no memory beyond twice the file and 200 MB.
"""

import os
import re

import pytest
from foreign_files import EDIT, READERS, check, edited, put, repacked
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("name", READERS)
def test_damage_at_random_is_one_line_that_names_the_file(tmp_path, name):
    _, read, file = READERS[name]
    whole, path = put(tmp_path, name), tmp_path / file
    path.write_bytes(whole)
    read(path)  # it is read while it is whole

    @settings(
        max_examples=60,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(EDIT, min_size=1, max_size=4), st.booleans())
    def damage(edits, is_inside):
        data = (repacked if is_inside else edited)(whole, edits)
        path.write_bytes(data)
        check(read, path, len(data))

    damage()


@pytest.mark.parametrize("name", READERS)
def test_generated_bytes_are_one_line_that_names_the_file(tmp_path, name):
    _, read, file = READERS[name]
    whole, path = put(tmp_path, name), tmp_path / file

    @settings(max_examples=25, derandomize=True, database=None, deadline=None, phases=[Phase.generate])
    @given(st.integers(0, 140), st.binary(max_size=200))
    def generated(kept, data):
        path.write_bytes(whole[:kept] + data)
        check(read, path, kept + len(data))

    generated()


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_a_device_and_a_folder_are_not_opened(tmp_path, name):
    _, read, file = READERS[name]
    path = tmp_path / file
    put(tmp_path, name)
    path.unlink(missing_ok=True)
    for make in (lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero"), lambda: path.symlink_to(tmp_path)):
        make()
        if name == "log":  # which never stops anything
            assert read(path) == []
        else:
            with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
                read(path)
        path.unlink()
