"""What nodes cost in float and in int8 on a measured processor, and which regions are faster left in float."""

from .choose import FLOAT_BYTES, LEAST_SHARE, Choice, Problem, Region, choose_float, pose_problem
from .fit import fit_kernel
from .gelu import gelu_saving
from .kernels import Work, kernel_of_event, work_of
from .profile import BORROWED, Kernel, Profile, find_profile, load_profile
from .units import faster_as_convolution, node_us, weight_shape

__all__ = [
    "BORROWED",
    "FLOAT_BYTES",
    "LEAST_SHARE",
    "Choice",
    "Kernel",
    "Problem",
    "Profile",
    "Region",
    "Work",
    "choose_float",
    "faster_as_convolution",
    "find_profile",
    "fit_kernel",
    "gelu_saving",
    "kernel_of_event",
    "load_profile",
    "node_us",
    "pose_problem",
    "weight_shape",
    "work_of",
]
