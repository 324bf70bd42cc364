"""Which folders hold packages. All else about the distribution is in pyproject.toml.

The recipes of the shipped guards, in engines/, become the package siren_engines, so that an
installation has them; pyproject.toml alone cannot give a folder another name.
"""

from setuptools import find_packages, setup

FOLDERS = ("runtime", "export", "train", "bench", "serve")

packages = {
    package: f"{folder}/{package.replace('.', '/')}"
    for folder in FOLDERS
    for package in find_packages(folder)
}
packages["siren_engines"] = "engines"

setup(packages=list(packages), package_dir=packages)
