"""Recipes, sweeps and policies lie in configs/ here, and inside the package where it is installed from a wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Build the package, and copy configs/ into it unless it is used from the source tree."""

    def run(self) -> None:
        """Build."""
        super().run()
        if not self.editable_mode:
            shutil.copytree("configs", Path(self.build_lib) / "cmrfed" / "configs", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
