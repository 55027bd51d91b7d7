"""The CSMF model, its stage loop and its capacity."""
