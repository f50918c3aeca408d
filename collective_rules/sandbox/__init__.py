"""Child processes for jobs that may raise, hang, die or flood their output. Knows nothing of collectives."""
