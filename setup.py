"""Drives CMake and mounts the top-level folders; everything else stands in pyproject.toml.

`kernels/` and `autotune/` have no `__init__.py`, so a repository root on `sys.path` never shadows PyPI's `kernels`;
they install as `seedthink.kernels` and `seedthink.autotune` (the committed symlinks serve editable installs).
Environment: SEEDTHINK_CUDA=auto|on|off, SEEDTHINK_CUDA_ARCHS="80;90a", SEEDTHINK_SANITIZE=1, MAX_JOBS=n.
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_namespace_packages, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Configures and builds CMakeLists.txt and places `_C` where setuptools expects it. A failed build is an error."""

    def build_extension(self, ext: Extension) -> None:
        """Build `ext`; raises CalledProcessError with the compiler's output above it."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        build.mkdir(parents=True, exist_ok=True)
        # pip's build environments come and go, and the cache remembers the ninja of the last one.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        import pybind11

        options = {
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": str(target.parent),
            "SEEDTHINK_CUDA": os.environ.get("SEEDTHINK_CUDA", "auto"),
            "SEEDTHINK_CUDA_ARCHS": os.environ.get("SEEDTHINK_CUDA_ARCHS", "80;90a"),
            "SEEDTHINK_SANITIZE": "ON" if os.environ.get("SEEDTHINK_SANITIZE") == "1" else "OFF",
        }
        jobs = os.environ.get("MAX_JOBS", str(len(os.sched_getaffinity(0))))
        flags = [f"-D{key}={value}" for key, value in options.items()]
        subprocess.run(["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *flags], check=True)
        subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True)


TOP_LEVEL = ("kernels", "autotune", "recipes")
MOUNTED = {f"seedthink.{name}": name for name in TOP_LEVEL}
packages = [
    name
    for name in find_packages(include=["seedthink", "seedthink.*"])
    if name.split(".")[1:2] not in [[n] for n in TOP_LEVEL]
]
package_dir = {"": "."}
for mounted, folder in MOUNTED.items():
    packages.append(mounted)
    package_dir[mounted] = folder
    for sub in find_namespace_packages(folder):
        packages.append(f"{mounted}.{sub}")
        package_dir[f"{mounted}.{sub}"] = f"{folder}/{sub.replace('.', '/')}"

setup(
    packages=packages,
    package_dir=package_dir,
    package_data={
        "seedthink.kernels": ["tables/*.json"],
        "seedthink.recipes": ["*/*.toml"],
        "seedthink": ["py.typed"],
        "seedthink.report": ["templates/*"],
        "seedthink.bench": ["*.toml"],
    },
    ext_modules=[Extension("seedthink._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
