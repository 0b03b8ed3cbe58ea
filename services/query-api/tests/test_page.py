"""The page: what is served from static/, how long it is kept, and what is said where it isn't built."""

import gzip

import pytest

from cncmon_api.page import Site


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text("<!doctype html><title>page</title>" + " " * 600)
    (tmp_path / "assets" / "index-abc123.js").write_text("console.log(1);" * 100)
    (tmp_path / "icon.svg").write_text("<svg/>")
    return tmp_path


@pytest.fixture
async def api(start_api, folder, monkeypatch):
    monkeypatch.setattr("cncmon_api.page.STATIC", folder)
    return await start_api()


@pytest.mark.parametrize("path", ["/", "/machines/m1", "/machines/cnc.01", "/wall", "/index.html"])
async def test_paths_of_the_page_get_the_page(api, path):
    answer = await api.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["cache-control"] == "no-cache"
    assert "<title>page" in answer.text
    same = await api.http.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert same.status_code == 304


async def test_hashed_files_are_kept_for_ever_and_sent_compressed(api):
    path = "/assets/index-abc123.js"
    answer = await api.get(path)
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["content-encoding"] == "gzip"
    assert int(answer.headers["content-length"]) == len(gzip.compress(answer.content, 9))
    plain = await api.http.get(path, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.text == answer.text


@pytest.mark.parametrize(
    "path", ["/assets/index-old.js", "/%2e%2e/secret.txt", "/assets/../../x.py", "//etc/passwd.txt"]
)
async def test_other_files_are_not_there(api, folder, path):
    (folder.parent / "secret.txt").write_text("secret")
    assert (await api.http.get(path)).status_code == 404


async def test_a_new_build_is_served_without_a_restart(api, folder):
    assert "new page" not in (await api.get("/")).text
    (folder / "index.html").write_text("<title>new page</title>")
    assert "new page" in (await api.get("/")).text


async def test_a_page_that_is_not_built_says_what_to_do(start_api, monkeypatch, tmp_path):
    monkeypatch.setattr("cncmon_api.page.STATIC", tmp_path / "none")
    answer = await (await start_api()).get("/machines/m1")
    assert answer.status_code == 200
    assert "make setup" in answer.text


def test_the_site_is_empty_without_a_folder(tmp_path):
    assert Site(tmp_path / "none").find("index.html") is None
