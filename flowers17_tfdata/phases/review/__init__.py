"""The phase `review`: which labels are probably wrong?"""
