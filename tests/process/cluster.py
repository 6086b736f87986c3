def missing_programs(a): return []
class Cluster: pass
