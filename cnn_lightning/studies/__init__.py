"""Studies: many runs of ``fit``, shared by any number of workers through a storage of Optuna."""
