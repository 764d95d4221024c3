package clients

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func grant(t *testing.T, client *clientv3.Client, ctx context.Context) int64 {
	t.Helper()
	return int64(must[*clientv3.LeaseGrantResponse](t)(client.Grant(ctx, 60)).ID)
}

func refused(t *testing.T, err error, text string) {
	t.Helper()
	if status.Code(err) != codes.Unknown || status.Convert(err).Message() != text {
		t.Fatalf("%v, not %q", err, text)
	}
}

// waits returns when a prefix has so many keys: the calls that wait have begun.
func waits(t *testing.T, client *clientv3.Client, ctx context.Context, prefix string, keys int64) {
	t.Helper()
	for {
		found := must[*clientv3.GetResponse](t)(client.Get(ctx, prefix, clientv3.WithPrefix()))
		if found.Count == keys {
			return
		}
		// Each change of the prefix is told.
		from := clientv3.WithRev(found.Header.Revision + 1)
		answer, more := <-client.Watch(ctx, prefix, clientv3.WithPrefix(), from)
		if !more || answer.Err() != nil {
			t.Fatalf("%d keys, not %d: %v", found.Count, keys, answer.Err())
		}
	}
}

type locked struct {
	answer *v3lockpb.LockResponse
	err    error
}

func lock(ctx context.Context, locks v3lockpb.LockClient, name string, lease int64) chan locked {
	done := make(chan locked, 1)
	go func() {
		answer, err := locks.Lock(ctx, &v3lockpb.LockRequest{Name: []byte(name), Lease: lease})
		done <- locked{answer, err}
	}()
	return done
}

func TestTheServersLockIsHeldByOneAfterTheOther(t *testing.T) {
	client, ctx := connect(t, "server-lock")
	locks := v3lockpb.NewLockClient(client.ActiveConnection())
	var leases []int64
	var held []chan locked
	for i := range 4 {
		lease := grant(t, client, ctx)
		leases = append(leases, lease)
		held = append(held, lock(ctx, locks, "l", lease))
		waits(t, client, ctx, "l/", int64(i+1))
	}
	for i, lease := range leases {
		got := <-held[i]
		if got.err != nil {
			t.Fatal(got.err)
		}
		if key := fmt.Sprintf("l/%x", lease); string(got.answer.Key) != key {
			t.Fatalf("%q, not %q", got.answer.Key, key)
		}
		for _, later := range held[i+1:] {
			select {
			case early := <-later:
				t.Fatalf("two have it: %v", early)
			default:
			}
		}
		if i == 1 {
			// A lease that ends frees the lock as well.
			must[*clientv3.LeaseRevokeResponse](t)(client.Revoke(ctx, clientv3.LeaseID(lease)))
			continue
		}
		unlocked := must[*v3lockpb.UnlockResponse](t)(locks.Unlock(ctx, &v3lockpb.UnlockRequest{Key: got.answer.Key}))
		if unlocked.Header.Revision <= got.answer.Header.Revision {
			t.Fatalf("%d after %d", unlocked.Header.Revision, got.answer.Header.Revision)
		}
	}
	waits(t, client, ctx, "l/", 0)
}

func TestALockOfTheSameLeaseIsHeldAtOnce(t *testing.T) {
	client, ctx := connect(t, "same-lease")
	locks := v3lockpb.NewLockClient(client.ActiveConnection())
	lease := grant(t, client, ctx)
	first := <-lock(ctx, locks, "l", lease)
	again := <-lock(ctx, locks, "l", lease)
	if first.err != nil || again.err != nil || string(first.answer.Key) != string(again.answer.Key) {
		t.Fatalf("%v, %v", first, again)
	}
	// Without a lease, the server grants one.
	other := <-lock(ctx, locks, "other", 0)
	if other.err != nil {
		t.Fatal(other.err)
	}
	key := must[*clientv3.GetResponse](t)(client.Get(ctx, string(other.answer.Key)))
	if len(key.Kvs) != 1 || key.Kvs[0].Lease == 0 {
		t.Fatalf("%v", key.Kvs)
	}
	left := must[*clientv3.LeaseTimeToLiveResponse](t)(client.TimeToLive(ctx, clientv3.LeaseID(key.Kvs[0].Lease)))
	if left.GrantedTTL != 60 {
		t.Fatalf("%d s", left.GrantedTTL)
	}
}

func TestAWaitingLockGoesWithItsClientOrItsLease(t *testing.T) {
	client, ctx := connect(t, "lock-cancel")
	locks := v3lockpb.NewLockClient(client.ActiveConnection())
	first := <-lock(ctx, locks, "l", grant(t, client, ctx))
	if first.err != nil {
		t.Fatal(first.err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	second := lock(cancelled, locks, "l", grant(t, client, ctx))
	waits(t, client, ctx, "l/", 2)
	cancel()
	if got := <-second; status.Code(got.err) != codes.Canceled {
		t.Fatal(got)
	}
	waits(t, client, ctx, "l/", 1)
	lease := grant(t, client, ctx)
	third := lock(ctx, locks, "l", lease)
	waits(t, client, ctx, "l/", 2)
	must[*clientv3.LeaseRevokeResponse](t)(client.Revoke(ctx, clientv3.LeaseID(lease)))
	must[*v3lockpb.UnlockResponse](t)(locks.Unlock(ctx, &v3lockpb.UnlockRequest{Key: first.answer.Key}))
	refused(t, (<-third).err, "mutex: session is expired")
	unknown := <-lock(ctx, locks, "l", 12345)
	refused(t, unknown.err, "etcdserver: requested lease not found")
}

func TestTheServersElectionTellsEachLeader(t *testing.T) {
	client, ctx := connect(t, "server-election")
	elections := v3electionpb.NewElectionClient(client.ActiveConnection())
	name := []byte("e")
	_, err := elections.Leader(ctx, &v3electionpb.LeaderRequest{Name: name})
	refused(t, err, "election: no leader")
	observed := must[v3electionpb.Election_ObserveClient](t)(elections.Observe(ctx, &v3electionpb.LeaderRequest{Name: name}))
	told := func(value string) {
		t.Helper()
		answer, err := observed.Recv()
		if err != nil || string(answer.Kv.Value) != value {
			t.Fatalf("%v, %v, not %q", answer, err, value)
		}
	}
	campaign := func(lease int64, value string) (*v3electionpb.CampaignResponse, error) {
		return elections.Campaign(ctx, &v3electionpb.CampaignRequest{Name: name, Lease: lease, Value: []byte(value)})
	}
	lease := grant(t, client, ctx)
	first := must[*v3electionpb.CampaignResponse](t)(campaign(lease, "one"))
	if key := fmt.Sprintf("e/%x", lease); string(first.Leader.Key) != key || first.Leader.Lease != lease || first.Leader.Rev != first.Header.Revision {
		t.Fatalf("%v, not %q", first.Leader, key)
	}
	told("one")
	must[*v3electionpb.ProclaimResponse](t)(elections.Proclaim(ctx, &v3electionpb.ProclaimRequest{Leader: first.Leader, Value: []byte("two")}))
	told("two")
	// The leader that campaigns again proclaims.
	again := must[*v3electionpb.CampaignResponse](t)(campaign(lease, "three"))
	if again.Leader.Rev != first.Leader.Rev {
		t.Fatalf("%v after %v", again.Leader, first.Leader)
	}
	told("three")
	leader := must[*v3electionpb.LeaderResponse](t)(elections.Leader(ctx, &v3electionpb.LeaderRequest{Name: name}))
	if string(leader.Kv.Value) != "three" || string(leader.Kv.Key) != string(first.Leader.Key) {
		t.Fatal(leader)
	}
	next := make(chan *v3electionpb.CampaignResponse, 1)
	go func() {
		won, _ := campaign(grant(t, client, ctx), "next")
		next <- won
	}()
	waits(t, client, ctx, "e/", 2)
	must[*v3electionpb.ResignResponse](t)(elections.Resign(ctx, &v3electionpb.ResignRequest{Leader: first.Leader}))
	won := <-next
	if won == nil {
		t.Fatal("the next doesn't lead")
	}
	told("next")
	_, err = elections.Proclaim(ctx, &v3electionpb.ProclaimRequest{Leader: first.Leader, Value: []byte("late")})
	refused(t, err, "election: not leader")
	// It is no longer there, so nothing is removed.
	must[*v3electionpb.ResignResponse](t)(elections.Resign(ctx, &v3electionpb.ResignRequest{Leader: first.Leader}))
	_, err = elections.Proclaim(ctx, &v3electionpb.ProclaimRequest{})
	refused(t, err, "\"leader\" field must be provided")
	_, err = elections.Resign(ctx, &v3electionpb.ResignRequest{})
	refused(t, err, "\"leader\" field must be provided")
}

func TestACandidateThatGoesResigns(t *testing.T) {
	client, ctx := connect(t, "candidate")
	elections := v3electionpb.NewElectionClient(client.ActiveConnection())
	campaign := func(ctx context.Context) error {
		_, err := elections.Campaign(ctx, &v3electionpb.CampaignRequest{Name: []byte("e"), Lease: grant(t, client, ctx), Value: []byte("v")})
		return err
	}
	if err := campaign(ctx); err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	second := make(chan error, 1)
	go func() { second <- campaign(cancelled) }()
	waits(t, client, ctx, "e/", 2)
	cancel()
	if err := <-second; status.Code(err) != codes.Canceled && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	waits(t, client, ctx, "e/", 1)
}

func TestLocksAndElectionsByJSON(t *testing.T) {
	client, ctx := connect(t, "json-lock")
	address := strings.TrimPrefix(client.Endpoints()[0], "http://")
	post := func(path, body string) string {
		t.Helper()
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("shardkv-keyspace", "json-lock")
		answer := must[*http.Response](t)(http.DefaultClient.Do(request))
		defer answer.Body.Close()
		text := must[[]byte](t)(io.ReadAll(answer.Body))
		if answer.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d %s", path, answer.StatusCode, text)
		}
		return string(text)
	}
	// "bA==" is "l", and "ZQ==" is "e".
	if text := post("/v3/lock/lock", `{"name":"bA=="}`); !strings.Contains(text, `"key":"bC8`) {
		t.Fatal(text)
	}
	if text := post("/v3/election/campaign", `{"name":"ZQ==","value":"bA=="}`); !strings.Contains(text, `"leader":`) {
		t.Fatal(text)
	}
	if text := post("/v3/election/leader", `{"name":"ZQ=="}`); !strings.Contains(text, `"kv":`) {
		t.Fatal(text)
	}
}
