"""The scale ``digits``: small networks on scikit-learn's digits, minutes on two cores."""
