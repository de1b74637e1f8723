"""The life of a rank: started, warmed up, told what to be, looped, ended."""
