package clients

import (
	"fmt"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestWatchFromThePastAndOn(t *testing.T) {
	client, ctx := connect(t, "watched")
	for i := range 50 {
		must[*clientv3.PutResponse](t)(client.Put(ctx, fmt.Sprintf("w/%02d", i), "old"))
	}
	events := client.Watch(ctx, "w/", clientv3.WithPrefix(), clientv3.WithRev(2), clientv3.WithPrevKV())
	for i := range 50 {
		must[*clientv3.PutResponse](t)(client.Put(ctx, fmt.Sprintf("w/%02d", i), "new"))
	}
	revision := int64(2)
	for revision < 102 {
		message, ok := <-events
		if !ok || message.Err() != nil {
			t.Fatalf("the watch ended at revision %d: %v", revision, message.Err())
		}
		for _, event := range message.Events {
			if event.Kv.ModRevision != revision {
				t.Fatalf("revision %d instead of %d", event.Kv.ModRevision, revision)
			}
			if event.IsModify() && string(event.PrevKv.Value) != "old" {
				t.Fatalf("the pair before is %v", event.PrevKv)
			}
			revision++
		}
	}
}
