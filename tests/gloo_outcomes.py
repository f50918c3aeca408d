"""What real gloo has been seen to do with calls that break each constraint: measured on torch 2.13.0, CPU.

"dies by 6" is an abort and "dies by 11" a segmentation fault of the whole process. Where a constraint has several
outcomes, it depends on the op, the sizes and the timing. `python -m tests.record_gloo_outcomes` measures them anew.
"""

from collections.abc import Mapping

OUTCOMES: Mapping[str, tuple[str, ...]] = {
    "AA1": ("raises",),
    "AA2": (
        "raises",
        "dies by 6",
    ),
    "AA3": ("raises",),
    "AA4": (
        "raises",
        "dies by 6",
    ),
    "AA5": (
        "silently wrong",
        "raises",
    ),
    "AA6": ("silently wrong",),
    "AA7": ("raises",),
    "AA8": ("hangs",),
    "AA9": ("hangs",),
    "AAS1": ("raises",),
    "AAS2": ("raises",),
    "AAS3": ("dies by 6",),
    "AAS4": (
        "raises",
        "dies by 6",
    ),
    "AAS5": (
        "raises",
        "dies by 11",
    ),
    "AAS6": (
        "silently wrong",
        "dies by 6",
    ),
    "AAS7": (
        "silently wrong",
        "raises",
    ),
    "AAS8": ("silently wrong",),
    "AAS9": (
        "ok",
        "silently wrong",
    ),
    "AAS10": ("silently wrong",),
    "AAS11": ("raises",),
    "AAS12": ("hangs",),
    "AAS13": ("hangs",),
    "AAS14": (
        "silently wrong",
        "raises",
    ),
    "AG1": (
        "raises",
        "dies by 6",
    ),
    "AG2": (
        "raises",
        "dies by 6",
    ),
    "AG3": (
        "silently wrong",
        "raises",
        "dies by 6",
    ),
    "AG4": (
        "silently wrong",
        "raises",
    ),
    "AG5": ("raises",),
    "AG6": ("hangs",),
    "AG7": ("hangs",),
    "AG8": ("raises",),
    "AGT1": (
        "raises",
        "dies by 11",
        "dies by 6",
    ),
    "AGT2": (
        "raises",
        "dies by 6",
    ),
    "AGT3": ("raises",),
    "AGT4": (
        "silently wrong",
        "raises",
        "dies by 6",
    ),
    "AGT5": (
        "raises",
        "dies by 6",
    ),
    "AGT6": (
        "ok",
        "silently wrong",
        "raises",
    ),
    "AGT9": (
        "silently wrong",
        "raises",
    ),
    "AGT10": (
        "ok",
        "silently wrong",
    ),
    "AGT11": ("raises",),
    "AGT12": ("hangs",),
    "AGT13": ("hangs",),
    "AR1": (
        "raises",
        "hangs",
        "dies by 6",
    ),
    "AR2": (
        "silently wrong",
        "raises",
        "dies by 6",
    ),
    "AR3": (
        "silently wrong",
        "raises",
    ),
    "AR4": (
        "ok",
        "raises",
        "hangs",
        "dies by 6",
    ),
    "AR5": ("silently wrong",),
    "AR6": (
        "ok",
        "silently wrong",
    ),
    "AR7": (
        "ok",
        "raises",
    ),
    "AR8": (
        "silently wrong",
        "raises",
    ),
    "AR9": ("raises",),
    "AR10": (
        "ok",
        "raises",
        "hangs",
        "dies by 6",
    ),
    "AR11": ("hangs",),
    "AR12": ("ok",),
    "BA1": ("hangs",),
    "BA2": ("hangs",),
    "BC1": (
        "silently wrong",
        "raises",
        "dies by 6",
    ),
    "BC2": (
        "silently wrong",
        "raises",
        "dies by 6",
    ),
    "BC3": (
        "raises",
        "hangs",
    ),
    "BC4": (
        "ok",
        "raises",
    ),
    "BC5": (
        "ok",
        "silently wrong",
    ),
    "BC6": ("silently wrong",),
    "BC7": ("raises",),
    "BC8": (
        "ok",
        "silently wrong",
    ),
    "BC9": ("raises",),
    "BC10": ("hangs",),
    "BC11": ("hangs",),
    "BC12": ("ok",),
    "GA1": ("raises",),
    "GA2": (
        "silently wrong",
        "raises",
        "dies by 6",
    ),
    "GA3": (
        "silently wrong",
        "raises",
        "dies by 6",
    ),
    "GA4": (
        "raises",
        "hangs",
    ),
    "GA5": ("raises",),
    "GA6": (
        "silently wrong",
        "raises",
    ),
    "GA7": ("raises",),
    "GA8": ("hangs",),
    "GA9": ("hangs",),
    "GLOO1": ("raises",),
    "GLOO2": ("raises",),
    "GLOO3": ("raises",),
    "GLOO4": (
        "ok",
        "silently wrong",
    ),
    "GLOO5": ("raises",),
    "GLOO6": ("raises",),
    "GLOO7": ("raises",),
    "GLOO8": ("raises",),
    "GLOO9": ("raises",),
    "GLOO10": ("silently wrong",),
    "GLOO11": ("ok",),
    "GLOO12": (
        "ok",
        "silently wrong",
    ),
    "GLOO13": ("raises",),
    "GLOO15": (
        "silently wrong",
        "raises",
    ),
    "GLOO16": ("raises",),
    "GLOO17": ("raises",),
    "GLOO18": ("silently wrong",),
    "PP1": ("raises",),
    "PP2": ("raises",),
    "PP3": (
        "silently wrong",
        "hangs",
    ),
    "RD1": (
        "hangs",
        "dies by 6",
    ),
    "RD2": (
        "silently wrong",
        "hangs",
        "dies by 6",
    ),
    "RD3": (
        "ok",
        "silently wrong",
    ),
    "RD4": (
        "ok",
        "raises",
        "hangs",
    ),
    "RD5": ("raises",),
    "RD6": ("silently wrong",),
    "RD7": (
        "ok",
        "silently wrong",
    ),
    "RD9": (
        "ok",
        "silently wrong",
    ),
    "RD10": ("raises",),
    "RD11": ("hangs",),
    "RD12": ("hangs",),
    "RE1": (
        "silently wrong",
        "dies by 6",
    ),
    "RE2": (
        "silently wrong",
        "dies by 6",
    ),
    "RE3": (
        "raises",
        "hangs",
    ),
    "RE4": (
        "raises",
        "hangs",
    ),
    "RE5": ("raises",),
    "RE6": ("raises",),
    "RE8": ("silently wrong",),
    "RE9": ("raises",),
    "RE10": ("hangs",),
    "RS1": ("raises",),
    "RS2": (
        "raises",
        "dies by 6",
    ),
    "RS3": (
        "silently wrong",
        "raises",
        "dies by 6",
    ),
    "RS4": (
        "ok",
        "silently wrong",
    ),
    "RS5": ("silently wrong",),
    "RS6": (
        "ok",
        "silently wrong",
    ),
    "RS7": (
        "ok",
        "silently wrong",
    ),
    "RS8": ("silently wrong",),
    "RS9": ("raises",),
    "RS10": ("dies by 6",),
    "RS11": (
        "raises",
        "hangs",
    ),
    "RS12": (
        "raises",
        "hangs",
        "dies by 6",
    ),
    "RST1": ("raises",),
    "RST2": (
        "raises",
        "hangs",
        "dies by 6",
    ),
    "RST3": (
        "raises",
        "dies by 11",
    ),
    "RST4": (
        "silently wrong",
        "raises",
        "dies by 6",
    ),
    "RST5": (
        "silently wrong",
        "raises",
    ),
    "RST6": (
        "raises",
        "hangs",
    ),
    "RST7": (
        "ok",
        "silently wrong",
        "raises",
    ),
    "RST9": ("silently wrong",),
    "RST10": (
        "silently wrong",
        "raises",
    ),
    "RST11": ("silently wrong",),
    "RST12": ("raises",),
    "RST13": (
        "hangs",
        "dies by 6",
    ),
    "RST14": (
        "raises",
        "hangs",
    ),
    "SC1": ("raises",),
    "SC2": (
        "silently wrong",
        "raises",
        "dies by 6",
    ),
    "SC3": (
        "silently wrong",
        "raises",
        "dies by 6",
    ),
    "SC4": (
        "raises",
        "hangs",
    ),
    "SC5": ("raises",),
    "SC6": ("silently wrong",),
    "SC7": ("silently wrong",),
    "SC8": (
        "ok",
        "silently wrong",
    ),
    "SC9": ("silently wrong",),
    "SC10": ("raises",),
    "SC11": ("hangs",),
    "SC12": ("hangs",),
    "SDA1": (
        "silently wrong",
        "raises",
        "dies by 6",
    ),
    "SDA2": ("raises",),
    "SDA3": ("dies by 6",),
    "SDA4": ("dies by 6",),
    "SDA5": ("raises",),
    "SDA6": ("hangs",),
    "SDA7": ("hangs",),
    "SE1": (
        "silently wrong",
        "dies by 6",
    ),
    "SE2": (
        "silently wrong",
        "dies by 6",
    ),
    "SE3": (
        "raises",
        "hangs",
    ),
    "SE4": (
        "raises",
        "hangs",
    ),
    "SE5": ("raises",),
    "SE6": ("raises",),
    "SE7": ("raises",),
    "SE8": ("hangs",),
    "WA2": ("raises",),
}
