"""Makes ``pytest suites/boot --build NAME --target NAME`` work in this lab."""

pytest_plugins = ("labctl.run.plugin", "labctl.report.plugin")
