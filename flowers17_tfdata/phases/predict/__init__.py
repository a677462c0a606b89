"""What a trained model says of photographs."""
