"""`--phase=export`: a trained model in formats that other programs run."""
