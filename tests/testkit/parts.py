"""Parts that a user's machine may lack. CI sets CNCMON_TEST_REQUIRE=all: then a missing part is a failure."""

import os
import shutil

REQUIRED = os.environ.get("CNCMON_TEST_REQUIRE") == "all"

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def missing_part(part: str) -> str | None:
    """Return why a part can't be had here, or None where it can."""
    if part == "chromium":
        return None if browser() else "no Chromium on PATH"
    if part == "root":
        return None if os.geteuid() == 0 else "needs root"
    raise ValueError(f"unknown part {part!r}")


def browser() -> str | None:
    """Return the path of a Chromium, if there is one."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)
