"""What tests are made of must itself be able to fail."""

import pytest
from helpers.every import every


def test_every_names_each_case_that_fails_and_why(tmp_path):
    @every(["good", "wrong", "silent"])
    def check(case, folder):
        assert folder == tmp_path
        assert case != "wrong"
        if case == "silent":
            with pytest.raises(ValueError, match="never"):
                pass

    with pytest.raises(AssertionError) as failed:
        check(folder=tmp_path)
    first, *lines = str(failed.value).splitlines()
    assert first == "2 of 3 cases fail:"
    assert lines[0].startswith("wrong: AssertionError: ")
    assert any(line.startswith("silent: Failed: DID NOT RAISE") for line in lines)


@every([1, 2])
def test_the_other_arguments_are_fixtures(number, tmp_path):
    (tmp_path / str(number)).touch()
    assert len(list(tmp_path.iterdir())) == number
