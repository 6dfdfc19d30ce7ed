"""How much the suite does, from the environment."""

from labctl.run.settings import Number, from_environment

(SECONDS,) = from_environment((Number("STORAGE_SECONDS", 5, 1, 86400, "seconds"),))
"""How long each job of fio's runs."""
