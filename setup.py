"""Puts the configs into the wheel; everything else stands in setup.cfg."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConfigs(build_py):
    """``configs/`` becomes ``ldlm_jax/configs/`` of a wheel; a clone keeps its own."""

    def run(self):
        """Copy the package, then the configs."""
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib) / "ldlm_jax" / "configs"
        self.mkpath(str(folder))
        for file in sorted(Path("configs").glob("*.py")):
            self.copy_file(str(file), str(folder / file.name))


setup(cmdclass={"build_py": WithConfigs})
