"""Generated from protos/termwise/v1 by `make proto`."""
