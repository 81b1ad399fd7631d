"""What a checkout needs around the package: fetching the model, building back ends."""
