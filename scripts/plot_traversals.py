#!/usr/bin/env python3
import sys

from vae.commands.plot import main_traversals as main

if __name__ == "__main__":
    sys.exit(main())
