"""What any likelihood gives: Bayes classifiers, learning curves, gain from unlabelled rows, imputation, anomalies."""
