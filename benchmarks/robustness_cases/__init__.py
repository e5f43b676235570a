"""Cases of `benchmarks.robustness` and what runs and judges them."""
