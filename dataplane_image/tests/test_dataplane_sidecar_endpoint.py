"""The endpoint file, plain and as a downward-API file of annotations."""

import os
from pathlib import Path

import pytest

from shadowserve_dataplane.sidecar.endpoint import EndpointFile, parse_endpoint


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("", None),
        ("\n", None),
        ("10.0.0.7:7000\n", "10.0.0.7:7000"),
        ("[fd00::7]:7000", "[fd00::7]:7000"),
        ('a="b"\nshadowserve.io/data-plane="10.0.0.7:7000"\nz="1"\n', "10.0.0.7:7000"),
        ('shadowserve.io/data-plane=""\n', None),
        ('a="b"\nshadowserve.io/injected="1"\n', None),
    ],
)
def test_the_endpoint_in_a_file(text: str, endpoint: str | None):
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize("text", ["card", "card:", "card:99999", "a b:1", "a:1\nb:2", 'shadowserve.io/data-plane="x'])
def test_other_texts_are_refused(text: str):
    with pytest.raises(ValueError, match=r".+"):
        parse_endpoint(text)


def test_changes_are_seen_and_nonsense_counts_as_none(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "endpoint"
    file = EndpointFile(path)
    assert file.read() is None
    path.write_text("card:7000")
    assert file.read() == "card:7000"
    new = tmp_path / "new"
    new.write_text("card:7001")
    os.replace(new, path)
    assert file.read() == "card:7001"
    path.write_text("what?")
    assert [file.read(), file.read()] == [None, None]
    assert caplog.text.count("not host:port") == 1
    path.unlink()
    assert file.read() is None


def test_no_file_at_all_means_no_data_plane():
    assert EndpointFile(None).read() is None
