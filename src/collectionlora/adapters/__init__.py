"""LoRA files and layers: read in every layout, put on a base, switched by role, merged and written."""

import logging

# peft imports it where it is installed, and it then tells every user of a CPU about a kernel of its own.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
