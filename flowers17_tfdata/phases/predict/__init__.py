"""`--phase=predict`: classifies image files with a trained model."""
