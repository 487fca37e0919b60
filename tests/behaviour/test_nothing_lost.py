"""A file appears whole or not at all."""
import pytest

from sensorllm_min.files import write_bytes


def test_an_error_while_writing_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        with write_bytes(path) as file:
            file.write(b"half")
            1 / 0
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
