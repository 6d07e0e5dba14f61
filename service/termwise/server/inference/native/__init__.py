"""Products and pooling in C, where the package was built with a compiler and the processor is one that they know."""
