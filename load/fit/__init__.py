"""Engine profiles from measurements: closed-loop runs are modelled until the model's figures are the measured ones."""
