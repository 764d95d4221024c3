// Package robustness judges keyspaces by etcd's robustness tests: its traffic, its model and its checks of linearizability, watches
// and stale reads. Members are nodes of ours, which the shim starts in the place of etcd; faults are kills and freezes.
//
// The watch checks need the list of requests that the group has accepted. A program reads it from the members' logs; without it etcd's
// code would skip these checks, so an empty list is a failure.
package robustness

import (
	"context"
	"flag"
	"math/rand"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sync/errgroup"

	"go.etcd.io/etcd/tests/v3/framework"
	"go.etcd.io/etcd/tests/v3/framework/e2e"
	"go.etcd.io/etcd/tests/v3/robustness/client"
	"go.etcd.io/etcd/tests/v3/robustness/failpoint"
	"go.etcd.io/etcd/tests/v3/robustness/identity"
	"go.etcd.io/etcd/tests/v3/robustness/model"
	"go.etcd.io/etcd/tests/v3/robustness/report"
	"go.etcd.io/etcd/tests/v3/robustness/traffic"
	"go.etcd.io/etcd/tests/v3/robustness/validate"
)

var (
	applied = flag.String("applied", "", "the program that lists the requests that a group has accepted")
	rounds  = flag.Int("rounds", 1, "how often each scenario runs")
	// Where the reports of failed scenarios go.
	reports = flag.String("reports", "", "the folder for reports of failures")
)

// The time that a check may take.
const patience = 5 * time.Minute

func TestMain(m *testing.M) { framework.E2eTestRunner.TestMain(m) }

// The scenarios: each traffic with each fault.
var traffics = []struct {
	name     string
	traffic  traffic.Traffic
	requests *traffic.KeyValue
}{
	{"Puts", traffic.EtcdPut, &traffic.KeyValueHigh},
	{"Leases", traffic.EtcdPutDeleteLease, &traffic.KeyValueMedium},
	{"Deletes", traffic.EtcdDelete, &traffic.KeyValueMedium},
	{"Kubernetes", traffic.Kubernetes, &traffic.KeyValueHigh},
}

var faults = []failpoint.Failpoint{failpoint.KillFailpoint, freeze{}}

func TestRobustness(t *testing.T) {
	framework.E2eTestRunner.BeforeTest(t)
	for _, load := range traffics {
		for _, fault := range faults {
			for range *rounds {
				t.Run(load.name+"/"+fault.Name(), func(t *testing.T) {
					profile := traffic.Profile{KeyValue: load.requests, Watch: &traffic.WatchDefault, Compaction: &traffic.CompactionDefault}
					scenario(t, load.traffic, profile, fault)
				})
			}
		}
	}
}

// scenario runs traffic against a fresh group of three members with one fault, and judges what the clients saw.
func scenario(t *testing.T, load traffic.Traffic, profile traffic.Profile, fault failpoint.Failpoint) {
	log := zaptest.NewLogger(t)
	ctx := t.Context()
	cluster, err := e2e.NewEtcdProcessCluster(ctx, t, e2e.WithClusterSize(3), e2e.WithKeepDataDir(true), e2e.WithDataDirPath(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	defer stop(cluster)
	seen := play(t, ctx, log, cluster, load, profile, fault)
	// The program opens the stores, so the members must be gone.
	stop(cluster)
	persisted, err := persistedRequests(*applied, directories(cluster))
	if err != nil {
		t.Fatal(err)
	}
	if len(persisted) == 0 {
		t.Fatal("no accepted request is known: without them watches aren't checked")
	}
	config := validate.Config{ExpectRevisionUnique: load.ExpectUniqueRevision()}
	result := validate.ValidateAndReturnVisualize(log, config, seen, persisted, patience)
	for _, check := range checks {
		// A check that was left out has no status.
		if found := check.of(&result); found.Status != validate.Success {
			t.Errorf("%s: %s %s", check.name, found.Status, found.Message)
		}
	}
	if t.Failed() && *reports != "" {
		page := filepath.Join(*reports, time.Now().Format("150405.000")+".html")
		if err := result.Linearization.Visualize(log, page); err != nil {
			t.Error(err)
		}
	}
	// Only puts have all that is falsified, and nothing that makes up for it: a deletion of nothing has no revision of its own.
	if !t.Failed() && t.Name() == "TestRobustness/Puts/Kill" {
		prove(t, config, seen, persisted)
	}
	tell(t, seen, persisted)
}

// tell prints what was checked, and fails if there was nothing to check.
func tell(t *testing.T, seen []report.ClientReport, persisted []model.EtcdRequest) {
	watches, events := 0, 0
	for _, one := range seen {
		for _, watch := range one.Watch {
			watches++
			for _, response := range watch.Responses {
				events += len(response.Events)
			}
		}
	}
	if watches == 0 || events == 0 {
		t.Errorf("%d watches with %d events: nothing was checked", watches, events)
	}
	t.Logf("%d accepted requests, %d watches with %d events", len(persisted), watches, events)
}

// play makes the traffic and the fault, and watches all changes until the last revision.
func play(t *testing.T, ctx context.Context, log *zap.Logger, cluster *e2e.EtcdProcessCluster, load traffic.Traffic, profile traffic.Profile, fault failpoint.Failpoint) []report.ClientReport {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	start, ids := time.Now(), identity.NewIDProvider()
	clients, watchers := client.NewSet(ids, start), client.NewSet(ids, start)
	defer clients.Close()
	defer watchers.Close()
	injected, last := make(chan report.FailpointInjection, 1), make(chan int64, 1)
	var group errgroup.Group
	group.Go(func() error {
		defer close(injected)
		time.Sleep(time.Second)
		done, err := failpoint.Inject(ctx, t, log, cluster, fault, start, ids)
		if err != nil {
			cancel()
			return err
		}
		time.Sleep(time.Second)
		injected <- done.FailpointInjection
		return nil
	})
	group.Go(func() error {
		defer close(last)
		seen := traffic.SimulateTraffic(ctx, t, log, cluster, profile, load, injected, clients)
		last <- report.OperationsMaxRevision(seen)
		return nil
	})
	group.Go(func() error {
		return client.CollectClusterWatchEvents(ctx, client.CollectClusterWatchEventsParam{
			Lg: log, Endpoints: cluster.EndpointsGRPC(), MaxRevisionChan: last, ClientSet: watchers,
		})
	})
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if err := client.CheckEndOfTestHashKV(ctx, cluster); err != nil {
		t.Error(err)
	}
	return slices.Concat(clients.Reports(), watchers.Reports())
}

// stop kills all members. It may be called again.
func stop(cluster *e2e.EtcdProcessCluster) {
	for _, member := range cluster.Procs {
		member.Kill()
	}
	cluster.ConcurrentStop()
}

func directories(cluster *e2e.EtcdProcessCluster) []string {
	var found []string
	for _, member := range cluster.Procs {
		found = append(found, member.Config().DataDirPath)
	}
	return found
}

// freeze stops a member's process for a time, as a machine that hangs, and lets it go on.
type freeze struct{}

func (freeze) Inject(ctx context.Context, _ *testing.T, _ *zap.Logger, cluster *e2e.EtcdProcessCluster, _ time.Time, _ identity.Provider) ([]report.ClientReport, error) {
	member := cluster.Procs[rand.Intn(len(cluster.Procs))]
	if err := member.Pause(); err != nil {
		return nil, err
	}
	select {
	case <-ctx.Done():
	case <-time.After(time.Second + time.Duration(rand.Int63n(int64(2*time.Second)))):
	}
	return nil, member.Resume()
}

func (freeze) Name() string { return "Freeze" }

func (freeze) Available(e2e.EtcdProcessClusterConfig, e2e.EtcdProcess, traffic.Profile) bool {
	return true
}
