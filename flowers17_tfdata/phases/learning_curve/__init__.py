"""The phase `learning_curve`: what would more photographs buy?"""
