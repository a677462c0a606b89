"""What setup.cfg can't say: configs/ is a part of the installed package."""

import setuptools

setuptools.setup(
    packages=[
        *setuptools.find_packages(include=["flowers17_tfdata*"]),
        "flowers17_tfdata.configs",
    ],
    package_dir={"flowers17_tfdata.configs": "configs"},
)
