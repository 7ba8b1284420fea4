"""What differs between the engines that a model can run on."""
