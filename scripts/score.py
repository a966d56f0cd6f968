#!/usr/bin/env python3
import sys

from vae.commands.score import main

if __name__ == "__main__":
    sys.exit(main())
