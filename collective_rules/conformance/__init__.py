"""Measures any backend against the rules: its ops, dtypes and reduce ops, and what it does with broken calls."""

from collective_rules.conformance.measure import measure
from collective_rules.conformance.reproducer import reproducer
from collective_rules.conformance.results import Conformance, Failure, KindResult, OpResult, WayResult
from collective_rules.conformance.suite import conformance_suite

__all__ = [
    "Conformance",
    "Failure",
    "KindResult",
    "OpResult",
    "WayResult",
    "conformance_suite",
    "measure",
    "reproducer",
]
