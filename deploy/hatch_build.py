"""Carry the repository's examples/digits, which `edgeferry demo` runs, into the wheel and the sdist."""

import os

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = os.path.join("examples", "digits")


class DigitsExample(BuildHookInterface):
    def initialize(self, version, build_data):
        beside = os.path.join(self.root, FOLDER)  # building from an unpacked sdist
        above = os.path.join(self.root, os.pardir, FOLDER)  # building from the repository
        source = beside if os.path.isdir(beside) else above
        if version == "editable":
            return  # an editable install reads the repository's own folder
        target = "examples/digits" if self.target_name == "sdist" else "edgeferry_deploy/examples/digits"
        for name in sorted(os.listdir(source)):
            if os.path.isfile(os.path.join(source, name)):
                build_data["force_include"][os.path.join(source, name)] = target + "/" + name
