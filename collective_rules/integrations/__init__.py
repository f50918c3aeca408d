"""Callbacks that guard a training run of other libraries; each module needs its library, and nothing else does."""
