"""What Keras imports if it is there and ranks do without: two of the five seconds that the start of one takes."""

import sys

sys.modules.update(dict.fromkeys(("matplotlib", "pandas", "sklearn")))
