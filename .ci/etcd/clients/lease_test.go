package clients

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

func TestALeaseEndsWithItsKeys(t *testing.T) {
	client, ctx := connect(t, "leased")
	lease := must[*clientv3.LeaseGrantResponse](t)(client.Grant(ctx, 2))
	events := client.Watch(ctx, "gone")
	granted := time.Now()
	must[*clientv3.PutResponse](t)(client.Put(ctx, "gone", "v", clientv3.WithLease(lease.ID)))
	for message := range events {
		for _, event := range message.Events {
			if event.Type == clientv3.EventTypeDelete {
				if lived := time.Since(granted); lived < 2*time.Second {
					t.Fatalf("the lease ended after %v", lived)
				}
				return
			}
		}
	}
	t.Fatal("the key wasn't deleted")
}

func TestAKeptLeaseStays(t *testing.T) {
	client, ctx := connect(t, "kept")
	lease := must[*clientv3.LeaseGrantResponse](t)(client.Grant(ctx, 2))
	must[*clientv3.PutResponse](t)(client.Put(ctx, "stays", "v", clientv3.WithLease(lease.ID)))
	answers := must[<-chan *clientv3.LeaseKeepAliveResponse](t)(client.KeepAlive(ctx, lease.ID))
	until := time.Now().Add(5 * time.Second)
	for time.Now().Before(until) {
		if answer, ok := <-answers; !ok || answer.TTL != 2 {
			t.Fatalf("the lease isn't renewed: %v", answer)
		}
	}
	if found := must[*clientv3.GetResponse](t)(client.Get(ctx, "stays")); len(found.Kvs) != 1 {
		t.Fatal("the key is gone")
	}
	must[*clientv3.LeaseRevokeResponse](t)(client.Revoke(ctx, lease.ID))
	if found := must[*clientv3.GetResponse](t)(client.Get(ctx, "stays")); len(found.Kvs) != 0 {
		t.Fatal("the key outlives its lease")
	}
}

func TestALockIsHeldByOne(t *testing.T) {
	client, ctx := connect(t, "locked")
	var held, turns int
	var group sync.WaitGroup
	for range 4 {
		session := must[*concurrency.Session](t)(concurrency.NewSession(client, concurrency.WithTTL(10)))
		group.Add(1)
		go func() {
			defer group.Done()
			defer session.Close()
			mutex := concurrency.NewMutex(session, "lock/")
			for range 5 {
				if err := mutex.Lock(ctx); err != nil {
					t.Error(err)
					return
				}
				// Only the lock keeps these from racing.
				held++
				if held != 1 {
					t.Errorf("%d hold the lock", held)
				}
				turns++
				held--
				if err := mutex.Unlock(ctx); err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	group.Wait()
	if turns != 20 {
		t.Fatalf("%d turns", turns)
	}
}

func TestAnElectionHasOneLeaderAndThenTheNext(t *testing.T) {
	client, ctx := connect(t, "elected")
	campaign := func() (*concurrency.Session, *concurrency.Election) {
		session := must[*concurrency.Session](t)(concurrency.NewSession(client, concurrency.WithTTL(10)))
		return session, concurrency.NewElection(session, "leader/")
	}
	firstSession, first := campaign()
	if err := first.Campaign(ctx, "first"); err != nil {
		t.Fatal(err)
	}
	secondSession, second := campaign()
	defer secondSession.Close()
	won := make(chan error, 1)
	go func() { won <- second.Campaign(ctx, "second") }()
	observed := second.Observe(ctx)
	if leader := <-observed; string(leader.Kvs[0].Value) != "first" {
		t.Fatalf("the leader is %v", leader)
	}
	// The session's end revokes its lease, and the next takes over.
	if err := firstSession.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-won; err != nil {
		t.Fatal(err)
	}
	leader, err := second.Leader(ctx)
	if err != nil || string(leader.Kvs[0].Value) != "second" {
		t.Fatalf("the leader is %v, %v", leader, err)
	}
	if err := first.Proclaim(ctx, "again"); !errors.Is(err, concurrency.ErrElectionNotLeader) && !errors.Is(err, context.Canceled) {
		t.Fatalf("a leader that lost its session proclaims: %v", err)
	}
}

func TestSTMCountsExactly(t *testing.T) {
	client, ctx := connect(t, "counted")
	var group sync.WaitGroup
	for range 4 {
		group.Add(1)
		go func() {
			defer group.Done()
			for range 10 {
				increment := func(stm concurrency.STM) error {
					stm.Put("n", stm.Get("n")+"x")
					return nil
				}
				if _, err := concurrency.NewSTM(client, increment, concurrency.WithAbortContext(ctx)); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	group.Wait()
	if found := must[*clientv3.GetResponse](t)(client.Get(ctx, "n")); len(found.Kvs[0].Value) != 40 {
		t.Fatalf("%d increments", len(found.Kvs[0].Value))
	}
}
