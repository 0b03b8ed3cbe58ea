"""The one thing that pyproject.toml can't say in a stable way: the C extension, which need not be built."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        # optional: without a C compiler or Python's headers the rest is installed, and packs rows in Python.
        Extension("cncmon_ingest._rows", ["src/cncmon_ingest/_rows.c"], py_limited_api=True, optional=True)
    ]
)
