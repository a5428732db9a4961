"""Refuse to build a wheel. Everything else is in pyproject.toml."""

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel


class NoWheel(bdist_wheel):  # type: ignore[misc]  # setuptools comes without types
    """An error: a wheel would copy the cells, spaces and settings that users edit to top-level names like `utils`."""

    def run(self) -> None:
        raise SystemExit("error: lambda-darts runs only in its checkout; install it with: pip install -e .")


setup(cmdclass={"bdist_wheel": NoWheel})
