"""Cases of `benchmarks.robustness`, and the code that runs and checks them."""
