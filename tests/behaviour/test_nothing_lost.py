"""A file appears whole or not at all."""
import pytest

from sensorllm_min.files import write_bytes


def test_an_error_while_writing_leaves_no_unfinished_file(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with write_bytes(tmp_path / "file") as file:
            file.write(b"half")
            1 / 0
    assert list(tmp_path.iterdir()) == []
