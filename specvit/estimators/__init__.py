"""Estimators that are fitted in one go: ridge regression, gradient-boosted trees and templates."""
