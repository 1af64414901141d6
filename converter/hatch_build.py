"""Carry the repository's device_profiles/ into the wheel and the sdist."""

import os

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "device_profiles"


class DeviceProfiles(BuildHookInterface):
    def initialize(self, version, build_data):
        beside = os.path.join(self.root, FOLDER)  # building from an unpacked sdist
        above = os.path.join(self.root, os.pardir, FOLDER)  # building from the repository
        source = beside if os.path.isdir(beside) else above
        if version == "editable":
            return  # an editable install reads the repository's own folder
        target = FOLDER if self.target_name == "sdist" else "edgeferry_converter/" + FOLDER
        build_data["force_include"][source] = target
