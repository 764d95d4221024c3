module shardkv.io/deploy/kube/bin/pause

go 1.26
