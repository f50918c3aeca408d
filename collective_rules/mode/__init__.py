"""The dispatch mode: sees the collectives of a running program, records and checks them, or simulates them."""

from collective_rules.mode.dispatch_mode import DispatchMode
from collective_rules.mode.observer import Observer
from collective_rules.mode.recorder import CallRecorder

__all__ = ["CallRecorder", "DispatchMode", "Observer"]
